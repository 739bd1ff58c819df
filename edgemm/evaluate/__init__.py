"""How well a model reads and draws: a torch checkpoint or an exported bundle, by the same code, with the same numbers.

evaluation.py          one evaluation from beginning to end
subject.py             what is evaluated, as a protocol; checkpoint_subject.py fulfils it with torch
read_suite.py          questions about pictures of a style the model never saw
draw_suite.py          drawings of emoji, judged by LabelScorer and by KID-Lite0
shapes_suite.py        drawings of shapes, judged exactly
judge.py               names a picture by EfficientNet-Lite0's features; trained on other artists' pictures
answers.py             when a reply is right: word for word, by VQAv2's rule, in every order of the options
metrics.py             the numbers, and the difference of two models: pure functions
draw_sheet.py          the drawings beside the real pictures, as one PNG
report.py              all of it as tables, and as one page
"""
