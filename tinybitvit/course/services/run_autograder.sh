#!/usr/bin/env bash
# Gradescope runs this in /autograder for each submission: submission/ is read, results/results.json is written.
mkdir -p results
PYTHONPATH=source exec source/venv/bin/python -P -m tinybitvit.course.services.gradescope SET
