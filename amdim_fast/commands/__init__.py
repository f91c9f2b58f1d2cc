"""The commands of ``amdim-fast``: a module each, with ``add_command(commands)``."""
