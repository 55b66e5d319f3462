"""The command line: it starts processes and speaks HTTP; operators' verbs open the doors."""
