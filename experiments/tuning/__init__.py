"""The tuning protocol, under all studies.

`samplers` chooses the first trials of a method, `sweep` plans trials, extensions and
final runs, `study` runs the stages of a study, and `runner` trains.
"""
