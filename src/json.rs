//! JSON as Go's encoding/json takes it: whatever containerd, its shim and runc read, we read as
//! they do.
//!
//! Other than with serde_json: null stands for any value and sets nothing; names are found in any
//! case; a name may come twice, the later one counts and objects are merged; bytes that are no
//! UTF-8 and lone surrogates become U+FFFD; what nobody asks for needs to be JSON, no more; and
//! 10,000 levels are allowed. (Go 1.19 to 1.26, `encoding/json/decode.go`, `scanner.go`.)

use std::{borrow::Cow, collections::HashMap};

/// Levels of objects and lists: Go's bound.
const MAX_DEPTH: usize = 10_000;
/// Items of a list of objects that is written again. Each takes some hundred bytes while it is.
const MAX_ITEMS: usize = 16_384;

/// No JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what} at byte {at}")]
pub struct BadJson {
    what: &'static str,
    at: usize,
}

type Result<T> = std::result::Result<T, BadJson>;

/// What stood where a value of one type was looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found<T> {
    /// Such a value.
    Value(T),
    /// null.
    Null,
    /// A value of another type; it was read over.
    Other,
}

/// Reads a text from its beginning to its end.
#[derive(Debug)]
pub struct Reader<'a> {
    text: &'a [u8],
    at: usize,
    depth: usize,
}

impl<'a> Reader<'a> {
    /// At the beginning.
    pub fn new(text: &'a [u8]) -> Self {
        Self { text, at: 0, depth: 0 }
    }

    /// Reads an object: `each` gets a member's name and must read its value.
    pub fn object(
        &mut self,
        mut each: impl FnMut(&str, &mut Self) -> Result<()>,
    ) -> Result<Found<()>> {
        match self.peek()? {
            b'{' => {}
            first => return self.other(first),
        }
        self.enter()?;
        let mut next = self.peek()?;
        while next != b'}' {
            let name = self.name()?;
            each(&decode(name), self)?;
            next = self.after_item(b'}')?;
        }
        self.leave();
        Ok(Found::Value(()))
    }

    /// Reads a list: `each` gets an item's index and must read it.
    pub fn list(
        &mut self,
        mut each: impl FnMut(usize, &mut Self) -> Result<()>,
    ) -> Result<Found<()>> {
        match self.peek()? {
            b'[' => {}
            first => return self.other(first),
        }
        self.enter()?;
        let mut next = self.peek()?;
        let mut index = 0;
        while next != b']' {
            each(index, self)?;
            index += 1;
            next = self.after_item(b']')?;
        }
        self.leave();
        Ok(Found::Value(()))
    }

    /// Reads a string.
    pub fn string(&mut self) -> Result<Found<String>> {
        match self.peek()? {
            b'"' => Ok(Found::Value(decode(self.quoted()?).into_owned())),
            first => self.other(first),
        }
    }

    /// Reads true or false.
    pub fn boolean(&mut self) -> Result<Found<bool>> {
        match self.peek()? {
            b't' => self.word("true").map(|()| Found::Value(true)),
            b'f' => self.word("false").map(|()| Found::Value(false)),
            first => self.other(first),
        }
    }

    /// Reads a number that is not negative and has no fraction.
    pub fn number(&mut self) -> Result<Found<u32>> {
        match self.peek()? {
            first @ (b'-' | b'0'..=b'9') => {
                let from = self.at;
                self.other::<()>(first)?;
                let digits = std::str::from_utf8(&self.text[from..self.at]).unwrap_or_default();
                Ok(digits.parse().map_or(Found::Other, Found::Value))
            }
            first => self.other(first),
        }
    }

    /// Reads any value.
    pub fn skip(&mut self) -> Result<()> {
        self.scan(None)
    }

    /// There is nothing more.
    pub fn end(&mut self) -> Result<()> {
        self.spaces();
        if self.at == self.text.len() { Ok(()) } else { Err(self.bad("something after the value")) }
    }

    fn other<T>(&mut self, first: u8) -> Result<Found<T>> {
        self.skip()?;
        Ok(if first == b'n' { Found::Null } else { Found::Other })
    }

    fn bad(&self, what: &'static str) -> BadJson {
        BadJson { what, at: self.at }
    }

    fn spaces(&mut self) {
        while matches!(self.text.get(self.at), Some(b' ' | b'\t' | b'\r' | b'\n')) {
            self.at += 1;
        }
    }

    /// The next byte that is no space; it is not read yet.
    fn peek(&mut self) -> Result<u8> {
        self.spaces();
        self.text.get(self.at).copied().ok_or_else(|| self.bad("the end of the text"))
    }

    fn enter(&mut self) -> Result<()> {
        if self.depth == MAX_DEPTH {
            return Err(self.bad("more than 10,000 levels"));
        }
        self.at += 1;
        self.depth += 1;
        Ok(())
    }

    fn leave(&mut self) {
        self.at += 1;
        self.depth -= 1;
    }

    /// A member's name, in quotes, and its colon.
    fn name(&mut self) -> Result<&'a [u8]> {
        if self.peek()? != b'"' {
            return Err(self.bad("no member's name"));
        }
        let name = self.quoted()?;
        if self.peek()? != b':' {
            return Err(self.bad("no colon after a member's name"));
        }
        self.at += 1;
        Ok(name)
    }

    /// After an item of a list or object: the byte with which the next one begins, or `close`.
    fn after_item(&mut self, close: u8) -> Result<u8> {
        match self.peek()? {
            b',' => {
                self.at += 1;
                let next = self.peek()?;
                if next == close { Err(self.bad("a comma too many")) } else { Ok(next) }
            }
            next if next == close => Ok(next),
            _ => Err(self.bad("neither comma nor end")),
        }
    }

    fn word(&mut self, word: &'static str) -> Result<()> {
        if !self.text[self.at..].starts_with(word.as_bytes()) {
            return Err(self.bad("no JSON"));
        }
        self.at += word.len();
        Ok(())
    }

    fn digits(&mut self) -> Result<()> {
        let from = self.at;
        while self.text.get(self.at).is_some_and(u8::is_ascii_digit) {
            self.at += 1;
        }
        if from == self.at { Err(self.bad("no digit")) } else { Ok(()) }
    }

    fn skip_number(&mut self) -> Result<()> {
        if self.text[self.at] == b'-' {
            self.at += 1;
        }
        match self.text.get(self.at) {
            Some(b'0') => self.at += 1,
            _ => self.digits()?,
        }
        if self.text.get(self.at) == Some(&b'.') {
            self.at += 1;
            self.digits()?;
        }
        if matches!(self.text.get(self.at), Some(b'e' | b'E')) {
            self.at += 1;
            if matches!(self.text.get(self.at), Some(b'+' | b'-')) {
                self.at += 1;
            }
            self.digits()?;
        }
        Ok(())
    }

    /// A string as it stands there, without its quotes.
    fn quoted(&mut self) -> Result<&'a [u8]> {
        self.at += 1;
        let from = self.at;
        loop {
            match self.text.get(self.at) {
                None => return Err(self.bad("the end of the text in a string")),
                Some(b'"') => {
                    self.at += 1;
                    return Ok(&self.text[from..self.at - 1]);
                }
                Some(b'\\') => match self.text.get(self.at + 1) {
                    Some(b'b' | b'f' | b'n' | b'r' | b't' | b'\\' | b'/' | b'"') => self.at += 2,
                    Some(b'u') if code_unit(&self.text[self.at..]).is_some() => self.at += 6,
                    _ => return Err(self.bad("an unknown escape")),
                },
                Some(0..0x20) => return Err(self.bad("a control character in a string")),
                Some(_) => self.at += 1,
            }
        }
    }

    /// Any value, without recursion; copied as it is where a copy is wanted, but for strings, which
    /// become UTF-8.
    fn scan(&mut self, mut copy: Option<&mut Vec<u8>>) -> Result<()> {
        // What closes each of the open ones.
        let mut open: Vec<u8> = Vec::new();
        let is_copied = copy.is_some();
        let mut put = |bytes: &[u8]| {
            if let Some(copy) = &mut copy {
                copy.extend_from_slice(bytes);
            }
        };
        loop {
            if open.last() == Some(&b'}') {
                let name = self.name()?;
                if is_copied {
                    put(&quote(name));
                    put(b":");
                }
            }
            let first = self.peek()?;
            let from = self.at;
            match first {
                b'{' | b'[' => {
                    self.enter()?;
                    put(&[first]);
                    // Two further on in ASCII.
                    let close = first + 2;
                    open.push(close);
                    if self.peek()? != close {
                        continue;
                    }
                }
                b'"' => {
                    let text = self.quoted()?;
                    if is_copied {
                        put(&quote(text));
                    }
                }
                _ => {
                    self.scalar(first)?;
                    put(&self.text[from..self.at]);
                }
            }
            let mut is_after_item = !matches!(first, b'{' | b'[');
            loop {
                let Some(close) = open.last().copied() else { return Ok(()) };
                let next = if is_after_item { self.after_item(close)? } else { self.peek()? };
                if next != close {
                    put(b",");
                    break;
                }
                put(&[close]);
                self.leave();
                open.pop();
                is_after_item = true;
            }
        }
    }

    fn scalar(&mut self, first: u8) -> Result<()> {
        match first {
            b't' => self.word("true"),
            b'f' => self.word("false"),
            b'n' => self.word("null"),
            b'-' | b'0'..=b'9' => self.skip_number(),
            _ => Err(self.bad("no JSON")),
        }
    }

    /// Reads a value of this shape over what was read before, as Go decodes into a variable.
    fn over(&mut self, shape: &Shape, node: &mut Node) -> Result<()> {
        match (shape, self.peek()?) {
            (Shape::Object(fields) | Shape::Part(fields), b'{') => {
                let mut members = match std::mem::take(node) {
                    Node::Object(members) => members,
                    _ => Vec::new(),
                };
                let mut places: HashMap<String, usize> = members
                    .iter()
                    .enumerate()
                    .map(|(place, (name, _))| (name.clone(), place))
                    .collect();
                self.object(|name, reader| {
                    let field = fields.iter().find(|(field, _)| is_name(name, field));
                    let (name, shape) =
                        field.map_or((name, &Shape::Any), |(field, shape)| (*field, shape));
                    let place = places.get(name).copied().unwrap_or_else(|| {
                        places.insert(name.to_owned(), members.len());
                        members.push((name.to_owned(), Node::Absent));
                        members.len() - 1
                    });
                    reader.over(shape, &mut members[place].1)
                })?;
                *node = Node::Object(members);
            }
            (Shape::List(item), b'[') => {
                let mut items = match std::mem::take(node) {
                    Node::List(items) => items,
                    _ => Vec::new(),
                };
                let mut count = 0;
                self.list(|index, reader| {
                    count = index + 1;
                    if count > MAX_ITEMS {
                        return Err(reader.bad("more items than any list of a format has"));
                    }
                    if items.len() < count {
                        items.push(Node::Absent);
                    }
                    reader.over(item, &mut items[index])
                })?;
                items.truncate(count);
                *node = Node::List(items);
            }
            (shape, b'n') => {
                self.skip()?;
                if !matches!(shape, Shape::Scalar | Shape::Part(_)) {
                    *node = Node::Absent;
                }
            }
            _ => {
                let mut text = Vec::new();
                self.scan(Some(&mut text))?;
                *node = Node::Text(text);
            }
        }
        Ok(())
    }
}

/// The names of a format, and what null does to a value that was there before.
#[derive(Debug)]
pub enum Shape {
    /// Without names; null takes it away.
    Any,
    /// The same, and null leaves it.
    Scalar,
    /// An object with these members, and perhaps others; null takes it away.
    Object(&'static [(&'static str, Shape)]),
    /// The same, and null leaves it.
    Part(&'static [(&'static str, Shape)]),
    /// A list of such.
    List(&'static Shape),
}

/// What was read.
#[derive(Debug, Default)]
enum Node {
    #[default]
    Absent,
    Text(Vec<u8>),
    Object(Vec<(String, Node)>),
    List(Vec<Node>),
}

impl Node {
    fn write(&self, out: &mut Vec<u8>) {
        match self {
            Self::Absent => out.extend_from_slice(b"null"),
            Self::Text(text) => out.extend_from_slice(text),
            Self::Object(members) => {
                out.push(b'{');
                for (name, value) in
                    members.iter().filter(|(_, value)| !matches!(value, Self::Absent))
                {
                    if out.last() != Some(&b'{') {
                        out.push(b',');
                    }
                    out.extend_from_slice(&encode(name));
                    out.push(b':');
                    value.write(out);
                }
                out.push(b'}');
            }
            Self::List(items) => {
                out.push(b'[');
                for (index, value) in items.iter().enumerate() {
                    if index > 0 {
                        out.push(b',');
                    }
                    value.write(out);
                }
                out.push(b']');
            }
        }
    }
}

/// An object as Go writes it again, for programs that are stricter: each name once and as the
/// format has it, no null, all of it UTF-8. (What runc reads it reads over defaults: a null would
/// take them away, and `runc update` crash.) `set` are members, as JSON, that it gets instead of
/// its own ones. null is an empty object; `None`: it is no object.
pub fn rewrite(text: &[u8], shape: &Shape, set: &[(&str, String)]) -> Result<Option<Vec<u8>>> {
    let mut reader = Reader::new(text);
    let mut node = Node::Object(Vec::new());
    match reader.peek()? {
        b'n' => reader.skip()?,
        _ => reader.over(shape, &mut node)?,
    }
    reader.end()?;
    let Node::Object(members) = &mut node else { return Ok(None) };
    members.retain(|(name, _)| set.iter().all(|(gone, _)| gone != name));
    members.extend(
        set.iter()
            .map(|(name, value)| ((*name).to_owned(), Node::Text(value.clone().into_bytes()))),
    );
    let mut out = Vec::with_capacity(text.len() + 32);
    node.write(&mut out);
    Ok(Some(out))
}

/// Whether a member's name means this field: in any case, as Unicode folds it.
pub fn is_name(name: &str, field: &str) -> bool {
    let fold = |c: char| match c {
        '\u{212a}' => 'k',
        '\u{17f}' => 's',
        c => c.to_ascii_lowercase(),
    };
    name.chars().map(fold).eq(field.chars().map(fold))
}

fn encode(text: &str) -> Vec<u8> {
    // A string can always be written.
    serde_json::to_vec(text).unwrap_or_default()
}

/// `\uXXXX`, at the beginning of a text.
fn code_unit(text: &[u8]) -> Option<u16> {
    let digits = text.strip_prefix(b"\\u")?.get(..4)?;
    digits.iter().try_fold(0, |unit, digit| {
        let digit = char::from(*digit).to_digit(16)?;
        Some(unit << 4 | u16::try_from(digit).ok()?)
    })
}

/// A string with its quotes: as it is, unless it is no UTF-8 or has surrogates in it.
fn quote(raw: &[u8]) -> Vec<u8> {
    let is_surrogate = |at: usize| matches!(code_unit(&raw[at..]), Some(0xd800..=0xdfff));
    if std::str::from_utf8(raw).is_err() || (0..raw.len()).any(is_surrogate) {
        return encode(&decode(raw));
    }
    [b"\"", raw, b"\""].concat()
}

/// What a string says, of which [`Reader::quoted`] has seen that its escapes are known ones.
fn decode(raw: &[u8]) -> Cow<'_, str> {
    if !raw.contains(&b'\\')
        && let Ok(text) = std::str::from_utf8(raw)
    {
        return Cow::Borrowed(text);
    }
    let mut text = String::with_capacity(raw.len());
    let mut rest = raw;
    while !rest.is_empty() {
        let plain = rest.iter().position(|b| *b == b'\\').unwrap_or(rest.len());
        for chunk in rest[..plain].utf8_chunks() {
            text.push_str(chunk.valid());
            // One for each byte.
            text.extend(chunk.invalid().iter().map(|_| char::REPLACEMENT_CHARACTER));
        }
        rest = &rest[plain..];
        let Some(escape) = rest.get(1) else { break };
        let (character, length) = match escape {
            b'u' => unicode(rest),
            b'b' => ('\u{8}', 2),
            b'f' => ('\u{c}', 2),
            b'n' => ('\n', 2),
            b'r' => ('\r', 2),
            b't' => ('\t', 2),
            other => (char::from(*other), 2),
        };
        text.push(character);
        rest = rest.get(length..).unwrap_or_default();
    }
    Cow::Owned(text)
}

/// The character of one `\uXXXX`, or of two that are a pair, and their length.
fn unicode(text: &[u8]) -> (char, usize) {
    let first = code_unit(text).unwrap_or_default();
    let second = text.get(6..).and_then(code_unit);
    let units = [Some(first), second.filter(|_| (0xd800..0xdc00).contains(&first))];
    match char::decode_utf16(units.into_iter().flatten()).next() {
        Some(Ok(character)) => (character, 6 * character.len_utf16()),
        _ => (char::REPLACEMENT_CHARACTER, 6),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masses_of_members_are_read_in_time_and_masses_of_items_are_refused() {
        static SHAPE: Shape = Shape::Object(&[("list", Shape::List(&Shape::Any))]);
        let members: String = (0..100_000).map(|number| format!("\"m{number}\":1,")).collect();
        // Quadratic it would take minutes.
        let text = format!("{{{members}\"m0\":2}}");
        let again = rewrite(text.as_bytes(), &SHAPE, &[]).unwrap().unwrap();
        assert!(again.starts_with(b"{\"m0\":2,\"m1\":1,"));
        let text = format!("{{\"list\":[{}0]}}", "0,".repeat(MAX_ITEMS));
        assert!(rewrite(text.as_bytes(), &SHAPE, &[]).is_err());
    }

    fn is_json(text: &[u8]) -> bool {
        let mut reader = Reader::new(text);
        reader.skip().and_then(|()| reader.end()).is_ok()
    }

    #[test]
    fn what_is_json_and_what_is_not() {
        let yes = [
            "{}",
            "[]",
            " [ ] ",
            "null",
            "0",
            "-0",
            "-1.5e+300",
            "1E9999",
            r#""""#,
            r#"{"a":[{},[[]],{"b":null}],"a":1}"#,
            "{ \"a\" : 1 , \"b\" : [ 1 , 2 ] }\n",
            r#""\ud800""#,
            r#""\u00E9\/""#,
            "true",
            "\"\u{7f}\"",
        ];
        for text in yes {
            assert!(is_json(text.as_bytes()), "{text}");
        }
        assert!(is_json(b"\"\xff\xfe\""));
        let no = [
            "",
            " ",
            "{",
            "[",
            "[1",
            "[1,",
            "[1,]",
            "[,1]",
            "{,}",
            r#"{"a"}"#,
            r#"{"a":}"#,
            r#"{"a":1,}"#,
            r#"{"a" 1}"#,
            "{1:2}",
            "01",
            "-",
            "1.",
            ".5",
            "1e",
            "+1",
            "nul",
            "nulll",
            "True",
            "'a'",
            "\"",
            r#""\x""#,
            r#""\u12g4""#,
            r#""\u12"#,
            "\"\n\"",
            "[1 2]",
            "[}",
            "{]",
            "NaN",
            "\u{feff}{}",
            "{} {}",
            "[1]]",
        ];
        for text in no {
            assert!(!is_json(text.as_bytes()), "{text}");
        }
    }

    #[test]
    fn ten_thousand_levels_and_no_more() {
        let nested = |levels: usize| ["[".repeat(levels), "]".repeat(levels)].concat();
        assert!(is_json(nested(MAX_DEPTH).as_bytes()));
        assert!(!is_json(nested(MAX_DEPTH + 1).as_bytes()));
        let objects =
            [r#"{"a":"#.repeat(MAX_DEPTH + 1), "1".to_owned(), "}".repeat(MAX_DEPTH + 1)].concat();
        assert!(!is_json(objects.as_bytes()));
    }

    #[test]
    fn strings_are_read_as_go_reads_them() {
        let cases: [(&[u8], &str); 9] = [
            (br"plain", "plain"),
            (br#"\"\\\/\b\f\n\r\t"#, "\"\\/\u{8}\u{c}\n\r\t"),
            (br"\u00e9\u4F60", "é你"),
            (br"\ud83d\ude00", "😀"),
            (br"\ud83d", "\u{fffd}"),
            (br"\ude00\ud83d\ude00", "\u{fffd}😀"),
            (br"\ud83d\u0041", "\u{fffd}A"),
            (b"a\xffb\xe2\x82c", "a\u{fffd}b\u{fffd}\u{fffd}c"),
            (b"\xed\xa0\x80", "\u{fffd}\u{fffd}\u{fffd}"),
        ];
        for (raw, text) in cases {
            assert_eq!(decode(raw), text);
        }
    }

    #[test]
    fn names_are_found_in_any_case() {
        assert!(
            is_name("ANNOTATIONS", "annotations") && is_name("annotation\u{17f}", "annotations")
        );
        assert!(is_name("\u{212a}ill", "kill"));
        assert!(!is_name("annotation", "annotations") && !is_name("ännotations", "annotations"));
    }

    #[test]
    fn a_rewritten_object_has_its_names_and_is_utf_8() {
        static SHAPE: Shape = Shape::Object(&[
            ("terminal", Shape::Any),
            ("user", Shape::Part(&[("uid", Shape::Scalar), ("gid", Shape::Scalar)])),
            ("rlimits", Shape::List(&Shape::Object(&[("type", Shape::Any)]))),
        ]);
        let set = [("terminal", "true".to_owned())];
        let rewritten = |text: &[u8]| {
            let bytes = rewrite(text, &SHAPE, &set).unwrap().unwrap();
            assert!(is_json(&bytes));
            String::from_utf8(bytes).unwrap()
        };
        let cases: [(&[u8], &str); 8] = [
            (b"{}", r#"{"terminal":true}"#),
            (b"null", r#"{"terminal":true}"#),
            (br#"{"Terminal":1,"a":1,"terminal":{},"a":null}"#, r#"{"terminal":true}"#),
            (
                br#"{"USER":{"Uid":1e400, "x" : [ ]},"user":null}"#,
                r#"{"user":{"uid":1e400,"x":[]},"terminal":true}"#,
            ),
            (
                br#"{"user":{"uid":1,"gid":2},"User":{"UID":3}}"#,
                r#"{"user":{"uid":3,"gid":2},"terminal":true}"#,
            ),
            (
                br#"{"RLIMITS":[{"TYPE":"a","\ud800":{"TYPE":1}},7]}"#,
                "{\"rlimits\":[{\"type\":\"a\",\"\u{fffd}\":{\"TYPE\":1}},7],\"terminal\":true}",
            ),
            (
                br#"{"rlimits":[{"type":"a"},{}],"rlimits":[{"x":1}]}"#,
                r#"{"rlimits":[{"type":"a","x":1}],"terminal":true}"#,
            ),
            (b"{\"x\":[\"\xff\",\"\\n\"]}", "{\"x\":[\"\u{fffd}\",\"\\n\"],\"terminal\":true}"),
        ];
        for (text, expected) in cases {
            assert_eq!(rewritten(text), expected);
        }
        assert_eq!(rewrite(b"[]", &SHAPE, &set), Ok(None));
        assert!(rewrite(b"{} x", &SHAPE, &set).is_err());
    }

    proptest::proptest! {
        // Against another reader: what it takes we take, and a copy says the same.
        #[test]
        fn whatever_serde_json_takes(text in r#"[\[\]{}",:0-9a-e. \\-]{0,40}"#) {
            let theirs = serde_json::from_str::<serde_json::Value>(&text);
            if let Ok(value) = theirs {
                let mut copy = Vec::new();
                Reader::new(text.as_bytes()).scan(Some(&mut copy)).unwrap();
                assert_eq!(serde_json::from_slice::<serde_json::Value>(&copy).unwrap(), value);
            } else {
                // Theirs alone: numbers that are too large.
                assert!(!is_json(text.as_bytes()) || text.contains('e'), "{text}");
            }
        }

        #[test]
        fn no_bytes_make_it_panic(
            bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..60),
        ) {
            let _ = is_json(&bytes);
            let _ = rewrite(&bytes, &Shape::Any, &[]);
        }
    }
}
