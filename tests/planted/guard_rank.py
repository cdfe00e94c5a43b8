"""One rank of a run with an error in its mathematics: `stepladder` as it always is, but for the program that it trains.

guard_rank.py PLANT run recipe.toml --out FOLDER
"""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent.parent / "shared"))


def main() -> int:
    from guard_plants import PLANTS, planted

    from stepladder.launch.cli import main as stepladder

    with planted(PLANTS[sys.argv[1]]):
        return stepladder(sys.argv[2:])


if __name__ == "__main__":
    sys.exit(main())
