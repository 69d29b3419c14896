"""Version 1 of the `openai` package, which many applications still pin."""
# /// script
# dependencies = ["openai==1.109.1"]
# ///

from openai_checks import *  # noqa: F403
from service import run_checks

if __name__ == "__main__":
    run_checks(globals())
