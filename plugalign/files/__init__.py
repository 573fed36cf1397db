"""Files that users give: one reader a format, and one error for each fault.

`rows` reads data (JSON lines, CSV, text), `typed` reads options and configurations (YAML, JSON)
into pydantic models, `folders` says whether a result can be written. Every fault is a ValueError
in one line that names the file, the line, the value (bounded, by `shown`) and the cure.
"""
