"""Run a program that a model wrote and judge it, in processes that share nothing but plain data.

| process | runs | knows |
|---|---|---|
| supervisor (`main`) | nothing of either | the tests |
| nursery (`nursery`), forked before the tests are read | nothing | the program |
| program (`program`), a fork of the nursery, one a test | the program | its input, or arguments of calls |
| judge (`judge`), a fork of the supervisor, one a test | the test | the test |

Program and judge each give up what they may do (`confine`) and speak over a socket (`peer`), in values that are rebuilt
from bytes (`plain`); what is no such value stays where it is, and the other side holds a number for it (`remote`). An
expected value and a comparison never leave the judge, so whatever the program does to its own process, or writes to
the socket, amounts to a value that must still be equal to one it has not seen.

The standard library only, and little of it, since it is started for every response.
"""
