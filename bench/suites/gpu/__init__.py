"""`python -m bench gpu`: everything measured on one GPU within ten minutes, each figure behind its gate; or tried in the interpreter.

plan.py lists the parts of a run, run.py starts each as a process of its own through supervise.py, report.py writes what they tell.
Such a process is child.py: it measures one section by one backend, with figures.py and clock.py.
"""
