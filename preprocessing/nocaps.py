"""nocaps: novel object captioning (Agrawal et al. 2019), whole and by domain.

    python -m preprocessing.nocaps data/nocaps

    data/nocaps/nocaps_val_4500_captions.json       10 captions per picture
    data/nocaps/nocaps_test_image_info.json         optional, without captions
    data/nocaps/val/*.jpg, test/*.jpg               pictures of Open Images, under the `file_name` of the JSON

Manifests `nocaps/val` and its parts `val_in`, `val_near`, `val_out`; `nocaps/test` for the server.
"""

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from preprocessing.official import Manifests, Row, main, one_line, present, read_json

FILES = {"val": "nocaps_val_4500_captions.json", "test": "nocaps_test_image_info.json"}
DOMAINS = {"in": "in-domain", "near": "near-domain", "out": "out-domain"}


def rows(split: str, data: Any, domain: str | None = None) -> Iterator[Row]:
    """Yield the pictures of a split, of one domain if given."""
    captions: dict[int, list[str]] = defaultdict(list)
    for annotation in data.get("annotations", []):
        captions[annotation["image_id"]].append(one_line(annotation["caption"]))
    for image in data["images"]:
        if domain in (None, image.get("domain")):
            row = {"uid": str(image["id"]), "image": f"{split}/{image['file_name']}", "image_id": image["id"]}
            row |= {"captions": captions[image["id"]]} if image["id"] in captions else {}
            row |= {"domain": image["domain"]} if "domain" in image else {}
            yield row | {"width": image["width"], "height": image["height"], "dataset": "nocaps"}


def build(root: Path) -> Manifests:
    """Return the rows of each manifest."""
    manifests: dict[str, Iterator[Row]] = {}
    for split, path in present(root, FILES).items():
        data = read_json(path)
        manifests[f"nocaps/{split}"] = rows(split, data)
        if split == "val":
            manifests |= {f"nocaps/val_{short}": rows(split, data, name) for short, name in DOMAINS.items()}
    return manifests


if __name__ == "__main__":
    main(__doc__, build)
