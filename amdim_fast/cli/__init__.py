"""The command ``amdim-fast``: one module per subcommand."""
