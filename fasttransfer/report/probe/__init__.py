"""What a probe found: its table, its figure, and the files it leaves in the folder of the study."""
