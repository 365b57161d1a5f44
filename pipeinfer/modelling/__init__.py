"""What a cluster takes and how good a draft is: measured, modelled or in closed form."""
