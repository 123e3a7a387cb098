r"""Penn Treebank tokenisation of captions, as the COCO caption evaluation does it with Stanford's tokenizer in Java.

`"A man's (red) T-shirt isn't here."` -> `"a man 's -lrb- red -rrb- t-shirt is n't here"`. Published CIDEr, BLEU and
ROUGE-L are computed on this text. The rules were found by running the Java program (CoreNLP 3.4.1 with
`-preserveLines -lowerCase`, then the punctuation filter of `pycocoevalcap`) on probes; `tests/parity` holds its output.

The program reads all captions as one text, and so do we: whether "vitamin C." keeps its dot depends on the first
word of the next caption. Everywhere else a caption stands for itself. `1 1/2` is one token with a no-break space.
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

# Dropped by the evaluation, after tokenisation. Brackets have become words such as -lrb- by then, and stay.
PUNCTUATION = frozenset(("''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";"))

_APOSTROPHE = r"(?:['\u0092\u2019]|&apos;)"
_APOSTROPHES = r"(?:['`\u0091\u0092\u2018\u2019\u201b]|&apos;)"
_ENTITY = r"&[aeiouAEIOU](?:acute|grave|uml);"
# Letters of any script with their marks; \u00ad, the soft hyphen, is dropped from the token.
_NO_LETTER = r"\W\d_\u00b2\u00b3\u00b9\u00bc-\u00be\u0bf0-\u0bf2\u2070-\u2189\u2460-\u249b"  # digits and signs
_LETTER = rf"(?:[^{_NO_LETTER}]|[\u00ad\u02c2-\u036f]|{_ENTITY})"
_ALNUM = rf"(?:{_LETTER}|\d)"
_WORD = rf"{_LETTER}{_ALNUM}*(?:[.!?]{_LETTER}{_ALNUM}*)*"
_NUMBER = r"(?:\d*(?:[.:,\u00ad\u066b\u066c]\d+)+|\d+)"
_SPACE = r"[ \t\u00a0\u1680\u2000-\u200a\u202f\u205f\u3000]"
_SPACES = r"[ \t\u00a0\u1680\u2000-\u200a\u202f\u205f\u3000\r\n]+"
_NEXT = r"(?=[^A-Za-z])"  # the end of the text is a line end

# Where a sentence is taken to begin after a single letter or an acronym.
_STARTERS = (
    "A|About|According|Additionally|After|An|As|At|But|Earlier|He|Her|Here|However|If|In|It|Last|Many|More|Mr\\.|Ms\\.|"
    "Now|Once|One|Other|Our|She|Since|So|Some|Such|That|The|Their|Then|There|These|They|This|We|What|When|While|Yet|You"
)
# Abbreviations that keep their dot, in any case.
_DOTTED = """
    mfg pvt assoc dept natl ave st ste dr mt ft vs cf mr mrs ms mme mlle messrs drs prof profs rev hon msgr gen sen sens
    rep reps gov govs pres atty supt supts det insp cmdr comdr adm capt lt col cpl pfc sgt maj brig ens asst adj adv
    alex jos wm
"""
# These may end a sentence too.
_DOTTED_ENDING = """
    jan feb mar apr jun jul aug sep sept oct nov dec mon tue tues wed thu thurs fri ala ariz calif colo conn ct dak fla
    ga ind kans kan ky md mich minn mo mont neb nev okla penn tenn va vt wis wisc wyo inc cos co corp ltd plc bros pte
    pty intl bancorp bhd assn univ sys jr sr esq ph.d bldg blvd rd sq etc al est tel ext seq rt
"""
_DOTTED_CAPITALISED = "Az Ark Del Ill La Mass Miss Ore Pa Tex Wash"  # words unless they are capitalised
_DOTTED_BEFORE_NUMBER = "ca no nos art figs fig pp op"
_EXTENSIONS = (
    "bat bmp cgi cpp c dll doc docx exe gif gz htm html jar java jpg jpeg mov mp3 pdf php pl png ppt ps py tar txt"
)

_FIXED = {
    '"': "''", "(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-",
    "`": "`", "\u2018": "`", "\u201b": "`", "\u0091": "`", "\u2039": "`",
    "'": "'", "\u2019": "'", "\u0092": "'", "\u203a": "'",
    "\u201c": "``", "\u00ab": "``", "\u0093": "``", "\u201d": "''", "\u00bb": "''", "\u0094": "''",
    "\u00a2": "cents", "\u00a3": "#", "\u00a4": "$", "\u20ac": "$", "\u0080": "$", "\u20a0": "$",
    "\u00bc": "1/4", "\u00bd": "1/2", "\u00be": "3/4", "\u2153": "1/3", "\u2154": "2/3",
    "\u2026": "...", "\u0085": "...",
    **dict.fromkeys("\u0096\u0097\u2013\u2014\u2015", "--"),
}  # fmt: skip
_ENTITIES = {"&amp;": "&", "&lt;": "<", "&gt;": ">", "&quot;": "''", "&apos;": "'", "&nbsp;": ""} | dict.fromkeys(
    ("&mdash;", "&ndash;", "&MD;"), "--"
)
# Single characters that are tokens of their own; all other ones that no rule takes are dropped, emoji among them.
_SYMBOL = re.compile(
    "[!#$%&*+,\\-./:;<=>?@\\\\^_|~\u00a1\u00a5-\u00a9\u00ac\u00ae-\u00b4\u00b6-\u00b9\u00bf\u00d7\u00f7\u037e\u0387\u0589"
    "\u05be\u05c0\u05c3\u05c6\u05f3\u05f4\u0606-\u060c\u061b\u061e\u061f\u066a\u066d\u06d4\u0700-\u070d\u07f6-\u07f8"
    "\u0964\u0965\u0e3f\u0e4f\u1fbd\u2016\u2017\u201a\u201e-\u2023\u2030-\u2038\u203b\u203e-\u2042\u2044\u2070"
    "\u2074-\u207e\u2080-\u208e\u20a4\u2100\u2101\u2103-\u2106\u2108\u2109\u2114\u2116-\u2118\u211e-\u2123\u2125\u2127"
    "\u2129\u212e\u213a\u213b\u2140-\u2144\u214a-\u214d\u214f\u2155-\u215e\u2190-\u24b5\u24d0-\u2bff\uff01-\uff0f"
    "\uff1a-\uff20\uff3b-\uff40\uff5b-\uff65\uffe0\uffe1\uffe5\uffe6]"
)


_QUOTES = re.compile("[`\u2018-\u201f\u2039\u203a\u00ab\u00bb\u0091-\u0094]{2}")


class _Rule(NamedTuple):
    """A rule takes group 1; the rule whose whole match is the longest wins, the first one on a tie."""

    pattern: re.Pattern[str]
    replacement: str | None = None  # None: the text itself


def _any_of(words: str) -> str:
    return "|".join(map(re.escape, sorted(words.split(), key=len, reverse=True)))


def _rules() -> list[_Rule]:
    any_case = _any_of(_DOTTED)
    ending = _any_of(_DOTTED_ENDING)
    capitalised = _any_of(f"{_DOTTED_CAPITALISED} {_DOTTED_CAPITALISED.upper()}")
    numbered = _any_of(_DOTTED_BEFORE_NUMBER)
    hyphen = "[-_\u058a\u2010\u2011]"
    elided = rf"(?:[dDoOlL]{_APOSTROPHES}[A-Za-z0-9])"
    thing = rf"{elided}?{_ALNUM}+(?:{hyphen}{elided}?{_ALNUM}+)*"
    hyphened = r"[A-Za-z0-9][A-Za-z0-9.,\u00ad]*(?:-(?:[A-Za-z](?:\.[A-Za-z])+\.|[A-Za-z0-9\u00ad]+))+"
    contraction = "(?:[msdMSD]|[rR][eE]|[vV][eE]|[lL][lL])"
    attribute = r"[A-Za-z][A-Za-z0-9:.-]*(?: *= *(?:'[^\r\n'\"]*'|\"[^\r\n'\"]*\"))?"
    sources = [
        # Markup, addresses
        rf"(<(?:[!?][A-Za-z-][^>\r\n]*|/?[A-Za-z][A-Za-z0-9:.-]*(?: +{attribute})* */?) *>)",
        r'(https?://[^ \t\n\f\r"<>|(){}]+[^ \t\n\f\r"<>|.!?(){},-])',
        r"((?:www\.(?:[^ \t\n\f\r\"<>|.!?(){},]+\.)+[a-zA-Z]{2,4}|"
        r"(?:[^ \t\n\f\r\"`'<>|.!?(){},-_$]+\.)+(?:com|net|org|edu))"
        r'(?:/[^ \t\n\f\r"<>|(){}]+[^ \t\n\f\r"<>|.!?(){},-])?)',
        r'((?:&lt;|<)?[a-zA-Z0-9][^ \t\n\f\r"<>|(){}\u00a0]*@(?:[^ \t\n\f\r"<>|(){}.\u00a0]+\.)*'
        r'[^ \t\n\f\r"<>|(){}.\u00a0]+(?:&gt;|>)?)',
        r"([@\uff20][a-zA-Z_][a-zA-Z_0-9]*)",
        rf"([#\uff03]{_LETTER}+)",
        # Joined words
        rf"(can)not{_NEXT}", rf"(gon)na{_NEXT}", rf"(got)ta{_NEXT}", rf"(lem)me{_NEXT}", rf"(gim)me{_NEXT}",
        rf"(wan)na{_NEXT}", r"('t)(?:is|was)", rf"(more){_APOSTROPHES}n{_NEXT}",
        # Contractions
        rf"([A-Za-z]+)[nN]{_APOSTROPHES}[tT]", rf"({_WORD}){_APOSTROPHE}{contraction}",
        rf"((?:'|&apos;){contraction})[^A-Za-z]", rf"([\u0092\u2019]{contraction})",
        rf"([nN]{_APOSTROPHES}[tT])[^A-Za-z]",
        # Words with an apostrophe
        rf"({_APOSTROPHE}[nN]{_APOSTROPHE}?)", rf"([lLdDjJ]{_APOSTROPHE})", rf"((?:dunkin|somethin|ol){_APOSTROPHE})",
        rf"({_APOSTROPHE}(?:em|till?|cause))", rf"([A-HJ-XZn]{_APOSTROPHES}{_LETTER}{{2,}})",
        rf"({_LETTER}+[aeiouyAEIOUY]{_APOSTROPHES}[aeiouA-Z]{_LETTER}*)", rf"([yY]{_APOSTROPHES}){_LETTER}",
        rf"({_APOSTROPHE}[2-9]0s)", rf"({_APOSTROPHE}\d\d)[ \t\n]", r"(c'mon|cap'n|c'est|pro-|anti-)",
        # Words and compounds
        rf"({_WORD})", rf"({thing})",
        r"([A-Z]+(?:(?:[+&]|&amp;)[A-Z]+)+)", r"([Cc]\+\+|[CcFf]#)",
        r"([A-Za-z0-9]+(?:-[A-Za-z]+){0,2}(?:\\?/[A-Za-z0-9]+(?:-[A-Za-z]+){0,2}){1,2})",
        rf"((?:{ending}|(?-i:{capitalised}))\.)(?s:..)?", rf"({hyphened})",
        *(rf"({words}\.)[,;:\u3001]" for words in (_WORD, thing, hyphened)),
        # Numbers
        rf"([-+]?{_NUMBER})",
        r"((?:\d{1,4}[- \u00a0])?\d{1,4}(?:\\?/|\u2044)\d{1,4})",
        r"((?:\(\d{2,3}\)[ \u00a0]?|(?:\+\+?)?(?:\d{2,4}[- \u00a0])?\d{2,4}[- \u00a0])\d{3,4}[- \u00a0]?\d{3,5})",
        r"((?:(?:\+\+?)?\d{2,4}\.)?\d{2,4}\.\d{3,4}\.\d{3,5})", r"([A-Z]*\$)",
        # Abbreviations: with a dot that belongs to them. A single letter lets it go where a sentence begins.
        rf"([A-Za-z])\.{_SPACES}(?:{_STARTERS}){_SPACES}", r"([A-Za-z](?:\.[A-Za-z])*\.)",
        rf"([A-Za-z0-9]+(?:\.[A-Za-z0-9]+)*\.(?:{_any_of(_EXTENSIONS)}))[^A-Za-z0-9]",
        rf"((?:{any_case})\.)", rf"((?:{numbered})\.){_SPACE}?\d",
        # Faces, marks
        r"([<>]?[:;=][-o*']?[()DPdpO\\{@|\[\]])(?![A-Za-z])", r"([-^x=~<>']_[-^x=~<>']|[\^x=~<>]\.[\^x=~<>])",
        r"(\([-^x=~<>'][_.]?[-^x=~<>']\))",
        rf"({_ENTITY}|&#\d+;)", r"([?!]+)", r"(\*+|_+|@+|#+|<<|>>)", r"(''|``)",
    ]  # fmt: skip
    # The lexer ignores case in some rules only; in the others an explicit class of letters says so.
    ignores_case = (
        any_case,
        ending,
        numbered,
        "(can)not",
        "(gon)na",
        "(got)ta",
        "(lem)me",
        "(gim)me",
        "(wan)na",
        "(?:is|was)",
    )
    ignores_case += ("(more)", "dunkin", "(?:em|till", "c'mon")
    rules = [_Rule(re.compile(s, re.IGNORECASE if any(mark in s for mark in ignores_case) else 0)) for s in sources]
    rules += [
        _Rule(re.compile(r"(\.{3,5}|(?:\.[ \u00a0]){2,4}\.)"), "..."),
        _Rule(re.compile(r"(-{2,})"), "--"),
        _Rule(re.compile(f"({_QUOTES.pattern})")),
        _Rule(re.compile(r'(")[A-Za-z0-9$]'), "``"),
        _Rule(re.compile(r"(')[A-Za-z][^ \t\n\u00a0]"), "`"),
        *(_Rule(re.compile(f"({re.escape(text)})"), token) for text, token in _ENTITIES.items()),
    ]
    return rules


_RULES = _rules()
_BLANK = re.compile(rf"(?:{_SPACE}|[\u200b-\u200f\ufeff\r])+")
_PLAIN = re.compile(r"[A-Za-z]+(?=[ \n])")  # most words: only these rules below can be longer
_SPLIT = frozenset(("cannot", "gonna", "gotta", "lemme", "gimme", "wanna"))
_INSIDE = str.maketrans({"(": "-lrb-", ")": "-rrb-", "\u00ad": None, " ": "\u00a0"})
_CONTRACTED = re.compile(r"([\u0092\u2019]|&apos;)(s|m|d|re|ve|ll|t)|n([\u0092\u2018\u2019]|&apos;)t")


def ptb_tokenize(captions: Sequence[str]) -> list[str]:
    """Tokenise captions, lower-case them and drop punctuation; line ends inside a caption are spaces.

    Args:
        captions: In the order in which the evaluation sees them (see above why it matters).

    Returns:
        One text per caption, tokens separated by single spaces; empty for a caption without tokens.
    """
    text = "".join(re.sub(r"[\r\n\u0085\u2028\u2029]", " ", caption) + "\n" for caption in captions)
    lines: list[str] = []
    tokens: list[str] = []
    place = 0
    while place < len(text):
        if text[place] == "\n":
            lines.append(" ".join(tokens))
            tokens = []
            place += 1
            continue
        token, place = _next(text, place)
        if token and token not in PUNCTUATION:
            tokens.append(token)
    return lines


def _next(text: str, place: int) -> tuple[str, int]:
    """Return the token that starts at `place` ("" for none) and where the next one may start."""
    plain = _PLAIN.match(text, place)
    if plain is not None and (word := plain[0].lower()) not in _SPLIT:
        return word, plain.end()
    blank = _BLANK.match(text, place)
    if blank is not None:
        return "", blank.end()
    best, replacement = None, None
    for rule in _RULES:
        match = rule.pattern.match(text, place)
        if match is not None and (best is None or match.end() > best.end()):
            best, replacement = match, rule.replacement
    mark = text[place]
    if best is None:
        return _FIXED.get(mark, mark if _SYMBOL.match(mark) else ""), place + 1
    token = best[1].lower().translate(_INSIDE) if replacement is None else replacement
    if _CONTRACTED.fullmatch(token):
        token = re.sub("[\u0092\u2019]|&apos;", "'", token).replace("\u2018", "`")
    elif _QUOTES.fullmatch(token):
        token = "".join(_FIXED.get(mark, mark) for mark in token)
    return token, best.end(1)
