"""What compressed models are made of: functions and layers that need torch alone.

A model with integer layers names these, and nothing else of lissom; nothing here imports from
anywhere else in it.
"""
