"""nipype: thin interfaces over pure functions, and the workflow of one scan."""
