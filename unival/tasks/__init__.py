"""One file per task; the file name is the registry."""

from unival.errors import UserError, did_you_mean
from unival.registry import is_own

# What `unival predict` and `unival.pipeline` call a task: its file and its modality.
PREDICT_TASKS = {
    "caption": ("caption", "image"),
    "vqa": ("vqa", "image"),
    "grounding": ("grounding", "image"),
    "entailment": ("entailment", "image"),
    "video-caption": ("caption", "video"),
    "video-vqa": ("vqa", "video"),
    "audio-caption": ("caption", "audio"),
    "audio-vqa": ("vqa", "audio"),
}


def check_predicted(task: object) -> None:
    """Refuse what is neither a name of `PREDICT_TASKS` nor a Python file of one's own."""
    if not (isinstance(task, str) and (task in PREDICT_TASKS or is_own(task))):
        fix = f"{did_you_mean(str(task), PREDICT_TASKS)}; or a Python file of your own"
        raise UserError(f"unknown task {task!r}", fix=fix)
