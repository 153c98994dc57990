"""What the sub-commands do: one module each, with `main(args) -> exit status`."""
