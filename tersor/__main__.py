"""`python -m tersor` is the command `tersor`: what `torchrun -m tersor` starts on every process."""

from tersor.cli import main

if __name__ == "__main__":
    main()
