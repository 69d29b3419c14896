"""Entry point of the web process: `python -m bros_batch.web`. Settings come from the environment."""

import gc

if __name__ == "__main__":
    # What the imports make stays, and the collector would look at it again and again: a fifth of the time of a start.
    # `serve` enables it when everything is loaded.
    gc.disable()
    from bros_batch.web.serve import main

    main()
