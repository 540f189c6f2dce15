"""What people look at and talk to: the page of the demo, the server, reports of runs.

May import every folder before it, and commands import it. Start with `report_page.py`.
"""
