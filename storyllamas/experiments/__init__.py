"""DVC experiments: `make sizes`, `make sweep` and the figure of losses."""
