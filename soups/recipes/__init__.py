"""What a merge is made of besides its method: recipe files, coefficients per tensor, policies where models differ."""
