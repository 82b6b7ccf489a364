//! What Go's JSON scanner says about a document that is not well-formed. Runs only when decoding has failed.

use super::DecodeError;

/// Go's limit on nesting.
const MAX_DEPTH: usize = 10_000;

/// Finds the first fault as Go's scanner does.
pub(super) fn check(body: &[u8]) -> Result<(), DecodeError> {
    Scanner { body, at: 0 }.document().map_err(DecodeError::Syntax)
}

struct Scanner<'a> {
    body: &'a [u8],
    at: usize,
}

enum Open {
    Array,
    Object,
}

impl Scanner<'_> {
    fn document(&mut self) -> Result<(), String> {
        let mut open: Vec<Open> = Vec::new();
        'value: loop {
            match self.next_token("looking for beginning of value")? {
                b'{' => {
                    enter(&mut open, Open::Object)?;
                    match self.next_token("looking for beginning of object key string")? {
                        b'}' => drop(open.pop()),
                        b'"' => {
                            self.key()?;
                            continue 'value;
                        }
                        c => return Err(invalid(c, "looking for beginning of object key string")),
                    }
                }
                b'[' => {
                    enter(&mut open, Open::Array)?;
                    if self.peek_token() != Some(b']') {
                        continue 'value;
                    }
                    self.at += 1;
                    open.pop();
                }
                b'"' => self.string()?,
                b't' => self.literal("true")?,
                b'f' => self.literal("false")?,
                b'n' => self.literal("null")?,
                c @ (b'-' | b'0'..=b'9') => self.number(c)?,
                c => return Err(invalid(c, "looking for beginning of value")),
            }
            // A value has ended: what may follow depends on what it is in.
            loop {
                match open.last() {
                    None => {
                        return match self.peek_token() {
                            None => Ok(()),
                            Some(c) => Err(invalid(c, "after top-level value")),
                        };
                    }
                    Some(Open::Array) => match self.next_token("")? {
                        b',' => continue 'value,
                        b']' => drop(open.pop()),
                        c => return Err(invalid(c, "after array element")),
                    },
                    Some(Open::Object) => match self.next_token("")? {
                        b',' => match self.next_token("")? {
                            b'"' => {
                                self.key()?;
                                continue 'value;
                            }
                            c => return Err(invalid(c, "looking for beginning of object key string")),
                        },
                        b'}' => drop(open.pop()),
                        c => return Err(invalid(c, "after object key:value pair")),
                    },
                }
            }
        }
    }

    fn key(&mut self) -> Result<(), String> {
        self.string()?;
        match self.next_token("")? {
            b':' => Ok(()),
            c => Err(invalid(c, "after object key")),
        }
    }

    fn peek_token(&mut self) -> Option<u8> {
        while matches!(self.body.get(self.at), Some(b' ' | b'\t' | b'\r' | b'\n')) {
            self.at += 1;
        }
        self.body.get(self.at).copied()
    }

    fn next_token(&mut self, _expecting: &str) -> Result<u8, String> {
        let token = self.peek_token().ok_or_else(unexpected_end)?;
        self.at += 1;
        Ok(token)
    }

    fn next(&mut self) -> Result<u8, String> {
        let c = *self.body.get(self.at).ok_or_else(unexpected_end)?;
        self.at += 1;
        Ok(c)
    }

    fn string(&mut self) -> Result<(), String> {
        loop {
            match self.next()? {
                b'"' => return Ok(()),
                b'\\' => match self.next()? {
                    b'b' | b'f' | b'n' | b'r' | b't' | b'\\' | b'/' | b'"' => {}
                    b'u' => {
                        for _ in 0..4 {
                            let c = self.next()?;
                            if !c.is_ascii_hexdigit() {
                                return Err(invalid(c, "in \\u hexadecimal character escape"));
                            }
                        }
                    }
                    c => return Err(invalid(c, "in string escape code")),
                },
                c if c < 0x20 => return Err(invalid(c, "in string literal")),
                _ => {}
            }
        }
    }

    fn literal(&mut self, word: &str) -> Result<(), String> {
        for want in word.bytes().skip(1) {
            let c = self.next()?;
            if c != want {
                return Err(invalid(c, &format!("in literal {word} (expecting {})", quoted(want))));
            }
        }
        Ok(())
    }

    fn digits(&mut self) {
        while matches!(self.body.get(self.at), Some(b'0'..=b'9')) {
            self.at += 1;
        }
    }

    fn number(&mut self, first: u8) -> Result<(), String> {
        let mut c = first;
        if c == b'-' {
            c = self.next()?;
            if !c.is_ascii_digit() {
                return Err(invalid(c, "in numeric literal"));
            }
        }
        if c != b'0' {
            self.digits();
        }
        if self.body.get(self.at) == Some(&b'.') {
            self.at += 1;
            let c = self.next()?;
            if !c.is_ascii_digit() {
                return Err(invalid(c, "after decimal point in numeric literal"));
            }
            self.digits();
        }
        if matches!(self.body.get(self.at), Some(b'e' | b'E')) {
            self.at += 1;
            let mut c = self.next()?;
            if matches!(c, b'+' | b'-') {
                c = self.next()?;
            }
            if !c.is_ascii_digit() {
                return Err(invalid(c, "in exponent of numeric literal"));
            }
            self.digits();
        }
        Ok(())
    }
}

fn enter(open: &mut Vec<Open>, what: Open) -> Result<(), String> {
    open.push(what);
    if open.len() > MAX_DEPTH { Err("exceeded max depth".to_owned()) } else { Ok(()) }
}

fn unexpected_end() -> String {
    "unexpected end of JSON input".to_owned()
}

fn invalid(c: u8, context: &str) -> String {
    format!("invalid character {} {context}", quoted(c))
}

/// A byte as Go quotes it.
fn quoted(c: u8) -> String {
    match c {
        b'\'' => r"'\''".to_owned(),
        b'"' => "'\"'".to_owned(),
        b'\n' => r"'\n'".to_owned(),
        b'\r' => r"'\r'".to_owned(),
        b'\t' => r"'\t'".to_owned(),
        b'\\' => r"'\\'".to_owned(),
        0x20..=0x7e => format!("'{}'", char::from(c)),
        0..=0x1f | 0x7f => format!(r"'\x{c:02x}'"),
        0x80.. => format!("'{}'", char::from(c)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check_error(body: &str, want: &str) {
        assert_eq!(check(body.as_bytes()).map_err(|e| e.to_string()), Err(want.to_owned()), "{body}");
    }

    #[test]
    fn faults_read_as_go_words_them() {
        check_error("", "unexpected end of JSON input");
        check_error(r#"{"a": {"b": "c""#, "unexpected end of JSON input");
        check_error("{a: 1}", "invalid character 'a' looking for beginning of object key string");
        check_error(r#"{"a" 1}"#, "invalid character '1' after object key");
        check_error(r#"{"a":1 "b"}"#, "invalid character '\"' after object key:value pair");
        check_error("[1 2]", "invalid character '2' after array element");
        check_error("[1,]", "invalid character ']' looking for beginning of value");
        check_error("{} x", "invalid character 'x' after top-level value");
        check_error("nil", "invalid character 'i' in literal null (expecting 'u')");
        check_error("\"a\nb\"", r"invalid character '\n' in string literal");
        check_error(r#""\x""#, "invalid character 'x' in string escape code");
        check_error("-x", "invalid character 'x' in numeric literal");
        check_error("1.x", "invalid character 'x' after decimal point in numeric literal");
        check_error("k8s", "invalid character 'k' looking for beginning of value");
        assert_eq!(check(br#" {"a":[1,-0.5e+3,true,null,{}, []],"b":"\u00e4"} "#), Ok(()));
    }
}
