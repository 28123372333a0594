"""`python -m cli` is `dpo`: so `dpo up` starts its parts with its own interpreter, whatever PATH says."""

from cli.main import main

main()
