"""The program in a response: blocks of every spelling that models write."""

import pytest

from firstorder.backends.tasks.fences import program

CODE = "def f(x):\n    return 2 * x\n"
INDENTED = CODE.replace("\n    ", "\n       ").replace("def", "   def")


@pytest.mark.parametrize(
    "text",
    [
        *(f"So:\n```{tag}\n{CODE}```\nDone." for tag in ("python", "python3", "Python", "PY", "py", "", "ipython")),
        *(
            f"```{tag}\n{CODE}```"
            for tag in ("{.python}", "{.python .numberLines}", 'python title="a.py"', "python:a.py")
        ),
        *(f"``` {tag} \n{CODE}```" for tag in ("python", "python3.11", "py3")),
        f"~~~python\n{CODE}~~~",
        f"~~~~\n{CODE}~~~~~~",
        f"````python\n{CODE}````",
        f"```python\n{CODE}```".replace("\n", "\r\n"),
        f"1. First:\n\n   ```python\n{INDENTED}   ```\n2. Then.",
        f"- ```python\n{CODE.replace('def', '  def').replace('    return', '      return')}  ```",
        f"1. ```python\n{INDENTED}   ```",
        f"```python\ndef f(x):\n    return 3\n```\nBetter:\n```python\n{CODE}```",
        f"```python\n{CODE}```\nIt prints\n```\n4\n```\nand\n```text\n4\n```",
        f"```bash\npip install x\n```\n```python\n{CODE}```",
        f"```text\nnot this\n```\n```\n{CODE}```",
        f"<think>```python\nx = 1\n```</think>```python\n{CODE}```",
        f"```python\n{CODE}",  # to the end of the text, as Markdown has it
        CODE,
    ],
)
def test_a_program_is_found_however_its_block_is_written(text):
    assert program(text).strip() == CODE.strip()


@pytest.mark.parametrize("indent", ["", "    "])
def test_a_block_in_a_docstring_does_not_end_the_program(indent):
    body = f'def f(x):\n    """Double.\n\n{indent}```python\n{indent}f(2)\n{indent}```\n    """\n    return 2 * x\n'
    assert program(f"Here:\n```python\n{body}```\nIt is\n```\nfast\n```") == body
    assert program(f"Here:\n```\n{body}```") == body or indent == ""


def test_a_program_that_is_no_python_is_its_block_and_no_more():
    assert program("```python\ndef f(:\n```\nand\n```\nx = 1\n```") == "def f(:\n"
    assert program("```python\nx = '\\d'\n```") == "x = '\\d'\n"
    assert program("```python\n" + "(" * 5000 + "\n```\n" + "```\n" * 200).startswith("(")
