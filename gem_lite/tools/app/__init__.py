"""The page of `gem-lite app`: engine.py answers, server.py guards, page.* is what people see."""
