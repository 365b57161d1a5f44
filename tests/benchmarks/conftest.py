"""The exact gate has options of its own (gate/pytest.ini): it is run by its own command, and by test_gate.py."""

collect_ignore = ["gate"]
