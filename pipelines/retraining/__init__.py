"""The scheduled job: embed what is new, compare heads, set the winner against the champion, promote it by rule.

Each night is one run, idempotent by its recipe and its logical date, and explained by its record.
Imports all other jobs.
"""
