"""Image codecs: pictures as grids of codes, and back (`unival.codec.base`)."""
