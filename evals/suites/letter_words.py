"""The words by which a letter is read: what may stand before and behind one, what names it, what denies it (evals.suites.letters)."""

from __future__ import annotations

OPEN = "([{\"'<"
CLOSE = ")]}\"'>"
ENDS = frozenset("'".split()) | frozenset('\n!"%&)+,-./:;=?]|}、。，')
"""What may stand right behind a letter."""
FOLLOWS = frozenset(
    """also although and appears are aren't as based because being but by can can't cannot corresponds could depicts describes do does doesn't don't due fits
    followed for from given had has hence here if in indicates instead is isn't looks makes matches may might must nor not on or over rather
    represents seems should shows since so than that then therefore though thus to too was wasn't were when which while will wins with won't would""".split()
)
"""Words that can stand behind a letter but not behind an article."""
VERBS_OF_I = frozenset("am can can't cannot could do don't had has if may might must see should think was will won't would".split())
"""Before them `I` is a pronoun."""
BEFORE = frozenset(
    """and answer answered answers are as be believe between both but certainly choice choose choosing chose clearly correct c'est definitely either eliminate
    es est except exclude for go guess hence i'd is isn't ist it's just leaves leaving letter likely maybe mean meant neither nor not obviously of only option
    options or out over perhaps pick picked picking possibly prefer probably rather reject right say select selected selecting so surely than that that's
    then therefore think thus to unlike was wasn't were with would""".split()
)
"""Words before a letter that stands for an option; a noun before one (`vitamin C`, `point B`) makes it a name."""
FILLERS = frozenset(
    """' a an as be believe certainly choice clearly definitely follows given here i'd indeed is it letter likely most must number obviously option probably
    say should simply surely that the therefore think thus to with would""".split()
) | frozenset('\n"#(*-:<=>[{')
"""What may stand between one of NAMES and the letter."""
NAMES = frozenset(
    """ans answer answers choice choose choosing chose conclude conclusion correct go guess it it's option pick picked right say select selected that's
    vote""".split()
)
"""Words that name the letter that follows them, whatever of FILLERS stands between."""
WEAK = frozenset("choice correct it option right say".split())
"""Those of NAMES that need one of VERB between them and the letter: `the correct choice is B`, but not `choice B`."""
VERB = frozenset("be is it's that's with would".split()) | frozenset(":=")
GOOD = frozenset("accurate answer appropriate best choice correct fit likely match one option plausible right suitable true".split())
BAD = frozenset("""eliminated excluded false implausible impossible inaccurate incorrect invalid irrelevant not out ruled unlikely wrong""".split())
COPULA = frozenset("appears are be being can is looks must seem seems should was were would".split())
DENY_AFTER = frozenset("aren't can't cannot couldn't doesn't don't isn't wasn't weren't won't wouldn't".split())
"""Words that deny the letter before them."""
DEGREE = frozenset("""a all also an be been both by clearly definitely far just likely more most obviously probably simply the therefore too very""".split())
"""Words that may stand between a verb and what it says of a letter."""
DENY_BEFORE = frozenset(
    """aren't can't cannot don't eliminate eliminates except exclude excludes excluding isn't neither nor not over reject than unlike wasn't without""".split()
)
"""Words that deny the letter behind them."""
DESCRIBES = frozenset("answers corresponds depicts describes fits matches represents".split())
"""Verbs that say that an option fits."""
CJK_NAMES = "选择案答"
CJK_FILLERS = "是为应该项选确正："
CJK_GOOD = "正对"
CJK_BAD = "错误不"
JOINS = frozenset("and nor or plus".split()) | frozenset("&+,/;|-、和或")
"""What stands between letters that are named together."""
PAUSES = frozenset(",;|-")
"""Those of JOINS behind which something else may begin as well."""
BESIDE_JOINS = frozenset("also both either even maybe option perhaps possibly".split())
"""What may stand beside one of JOINS."""
ALL = frozenset("all any anything everything none".split())
"""`all but B` denies B."""
CONCLUDES = frozenset("conclusion consequently hence so therefore thus".split())
"""Words before the letter that the answer ends with."""
TITLES = frozenset("dr fig mr mrs ms no prof st vs".split())
"""With a point behind them they begin a name."""
