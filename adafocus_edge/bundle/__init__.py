"""The bundle on disk: its manifest, its variants, and the engines beside its graphs."""
