"""Shipped recipes: TOML files, data without code. `stepladder run demo` reads `demo.toml` from here."""
