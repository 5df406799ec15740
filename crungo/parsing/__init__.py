"""From the text that users write to the values of ``crungo.config``, one module per family of flags.

Every function here is pure: what it needs of its surroundings (environment, working directory) is an argument.
Malformed text raises ``UsageError`` with one line that names the flag, the text, what is wrong and what is right;
no text whatever raises anything else.
"""
