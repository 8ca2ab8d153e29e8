"""The HTML reports of participants and of the group."""
