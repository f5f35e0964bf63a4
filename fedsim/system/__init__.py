"""What the clients' devices do to a round: who is there, how long each takes, who is lost. No Flower, no Ray.

Everything is planned on the server before anybody trains: `System.plan` says who is asked, whose answer counts and
when the round is over on a virtual clock. docs/system.md has every formula.
"""
