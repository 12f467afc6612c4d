"""The figures of the report: tables in, pictures with captions out; what is drawn where, while `draw` says how.

Every caption says what an interval or a band is and on how many seeds it rests.
"""
