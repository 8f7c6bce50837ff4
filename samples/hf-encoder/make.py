"""Trains a tiny BERT to tell the subject of a sentence, and saves it as a Hugging Face folder."""

import sys
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertForSequenceClassification

SUBJECTS = {
    "kitchen": "oven pan salt soup bread knife plate butter",
    "garden": "rose soil seed rain hedge spade lawn bee",
    "harbour": "ship rope wave sail anchor gull mast pier",
    "workshop": "saw nail drill plank glue bench screw file",
}
COMMON = "the a and on in near old new big small was saw is took left with".split()  # noqa: SIM905
LENGTH = 16


def sentence(subject: int, rng: np.random.Generator) -> list[str]:
    """Return words of which three are of the subject, one of another, the rest of none."""
    lists = [words.split() for words in SUBJECTS.values()]
    other = (subject + int(rng.integers(1, len(lists)))) % len(lists)
    words = [*rng.choice(lists[subject], 3), rng.choice(lists[other])]
    words += list(rng.choice(COMMON, LENGTH - len(words)))
    return [str(word) for word in rng.permutation(words)]


def samples(count: int, tokenizer: Tokenizer, seed: int) -> dict[str, np.ndarray]:
    """Return token ids ``(count, 16)`` and labels ``(count,)``."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, len(SUBJECTS), count)
    texts = [" ".join(sentence(int(label), rng)) for label in labels]
    ids = [encoding.ids for encoding in tokenizer.encode_batch(texts)]
    return {"input_ids": np.asarray(ids, np.int64), "label": labels}


def main(folder: Path) -> None:
    """Write the model into ``folder``, and ``calib.npz`` and ``eval.npz`` into ``folder/data``."""
    words = ["[UNK]", *COMMON, *" ".join(SUBJECTS.values()).split()]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, "[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    torch.manual_seed(0)
    torch.set_num_threads(1)  # more only get in each other's way at this size
    model = BertForSequenceClassification(
        BertConfig(
            vocab_size=len(words),
            hidden_size=128,
            intermediate_size=256,
            num_hidden_layers=1,
            num_attention_heads=4,
            max_position_embeddings=64,
            num_labels=len(SUBJECTS),
            hidden_dropout_prob=0.0,
        )
    )
    train = {key: torch.from_numpy(value) for key, value in samples(5120, tokenizer, 0).items()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for step in range(80):
        rows = slice(64 * step, 64 * step + 64)
        loss = model(input_ids=train["input_ids"][rows], labels=train["label"][rows]).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    print(f"loss of the last step: {loss.item():.4f}")
    model.save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "data").mkdir(exist_ok=True)
    np.savez(folder / "data" / "calib.npz", **samples(200, tokenizer, 1))
    np.savez(folder / "data" / "eval.npz", **samples(500, tokenizer, 2))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
