"""What a person asks of `sid-ray`: a module a subcommand."""
