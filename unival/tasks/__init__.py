"""One file per task; the file name is the registry."""

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
