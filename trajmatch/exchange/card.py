"""The card of a data set of Hugging Face: its head is YAML that gives the types of the columns."""

from __future__ import annotations

import json

from trajmatch.artifact import Artifact


def dataset_card(distilled: Artifact) -> str:
    """The text of ``README.md``.

    Args:
        distilled: The set that the folder holds.

    Returns:
        Markdown. A string of JSON is one of YAML, so class names are written as JSON. The
        fingerprint is in the head because the package ``datasets`` tells folders of one name apart
        by their heads alone, and would return the images that it read first.
    """
    names = [
        f"          '{index}': {json.dumps(name)}"
        for index, name in enumerate(distilled.class_names)
    ]
    soft = ["  - name: logits", "    sequence: float32"] if distilled.label_kind == "logit" else []
    preprocessing = json.dumps(distilled.preprocessing.spec())
    labels = (
        "class indices, and target logits (their softmax is the target)"
        if soft
        else "class indices"
    )
    return "\n".join(
        [
            "---",
            "task_categories:",
            "- image-classification",
            "configs:",
            "- config_name: default",
            f"  description: distilled set {distilled.fingerprint}",
            "  data_files:",
            "  - split: train",
            "    path: train/**",
            "  features:",
            "  - name: image",
            "    dtype: image",
            "  - name: label",
            "    dtype:",
            "      class_label:",
            "        names:",
            *names,
            *soft,
            "---",
            "",
            f"# {distilled.dataset_name}, distilled to {distilled.ipc} images per class",
            "",
            f"Made by trajmatch. Labels are {labels}.",
            "",
            f"- learned step size: {distilled.lr!r}",
            f"- preprocessing of training and test images: `{preprocessing}`",
            f"- augmentation (DSA): `{distilled.dsa}`",
            f"- network: `{json.dumps(distilled.network)}`",
            "",
            "The images are pixels, rounded and cut to 8 bits; `distilled.json` has the rest.",
            "",
        ]
    )
