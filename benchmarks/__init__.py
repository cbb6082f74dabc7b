"""How long it takes, how much it needs, beside what: `./build bench NAME…`."""
