"""Clusters that are modelled or calibrated, in virtual time: what computing takes, how good a draft is, who wins."""
