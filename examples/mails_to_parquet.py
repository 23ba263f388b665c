"""Mails in folders, one folder a class, as a table of texts to audit.

    python examples/mails_to_parquet.py MAILS mails.parquet --spam spam-1 spam-2
    accomplice run configs/mails.toml --data.source mails.parquet

Headers are left out: they give the source of a mail away, which no model should learn.
"""

import argparse
from pathlib import Path

import datasets


def body(path: Path) -> str:
    """What follows the first empty line."""
    text = path.read_bytes().decode("utf-8", errors="replace").replace("\r\n", "\n")
    return text.partition("\n\n")[2]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("mails", type=Path, help="folder with one subfolder a class")
    parser.add_argument("out", type=Path, help="parquet file to write")
    parser.add_argument("--spam", nargs="+", required=True, help="subfolders of spam")
    options = parser.parse_args()
    files = sorted(options.mails.glob("*/*.txt"))
    rows = {
        "text": [body(path) for path in files],
        "label": [int(path.parent.name in options.spam) for path in files],
        "file": [str(path.relative_to(options.mails)) for path in files],
    }
    features = datasets.Features(
        text=datasets.Value("string"),
        label=datasets.ClassLabel(names=["ham", "spam"]),
        file=datasets.Value("string"),
    )
    datasets.disable_progress_bars()
    datasets.Dataset.from_dict(rows, features=features).to_parquet(options.out)
    print(f"{len(files)} mails, {sum(rows['label'])} of them spam: {options.out}")


if __name__ == "__main__":
    main()
