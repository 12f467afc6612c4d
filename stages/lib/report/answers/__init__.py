"""What the report says, made from the numbers: no verdict stands in the code, words follow intervals.

Each module answers one of the five questions with blocks of text and tables (`stages.lib.report.page`); figures are put
in by the report. A number that no analysis delivered is said to be missing.
"""
