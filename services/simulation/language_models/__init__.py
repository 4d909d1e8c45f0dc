"""Language models that simulate, explain and judge: local ones and those behind a server."""
