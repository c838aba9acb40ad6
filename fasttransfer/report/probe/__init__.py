"""The results of a probe: a table, a figure, and files in the folder of the study."""
