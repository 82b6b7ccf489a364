//! A double of a key-management service: gRPC at a Unix socket. It "encrypts" by turning bytes around and says which key it used.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use bytes::{BufMut, Bytes, BytesMut};

pub(crate) struct Kms {
    pub socket: PathBuf,
    /// What it says is its key, and what it encrypts with.
    keys: Arc<Mutex<[String; 2]>>,
    calls: Arc<Mutex<Vec<String>>>,
}

impl Kms {
    pub(crate) fn start(dir: &Path) -> Self {
        let socket = dir.join("kms.sock");
        let keys = Arc::new(Mutex::new(["key-1", "key-1"].map(str::to_owned)));
        let calls = Arc::new(Mutex::new(Vec::new()));
        let (current, called) = (Arc::clone(&keys), Arc::clone(&calls));
        crate::grpc::serve(&socket, move |method, question| {
            called.lock().unwrap().push(method.to_owned());
            answer(method, question, &current.lock().unwrap())
        });
        Kms { socket, keys, calls }
    }

    /// Uses another key from now on.
    pub(crate) fn rotate(&self, key: &str) {
        *self.keys.lock().unwrap() = [key, key].map(str::to_owned);
    }

    /// Encrypts with another key than it says.
    pub(crate) fn contradict(&self, key: &str) {
        key.clone_into(&mut self.keys.lock().unwrap()[1]);
    }

    pub(crate) fn calls(&self, method: &str) -> usize {
        self.calls.lock().unwrap().iter().filter(|called| *called == method).count()
    }
}

fn answer(method: &str, question: &[u8], [said, used]: &[String; 2]) -> Bytes {
    // Field 1 of both questions is bytes: its tag, its length (short here), and the bytes.
    let turned = || -> Vec<u8> { question[2..2 + usize::from(question[1])].iter().rev().copied().collect() };
    let mut out = BytesMut::new();
    let mut put = |field: u8, data: &[u8]| {
        out.put_u8(field << 3 | 2);
        out.put_u8(u8::try_from(data.len()).unwrap());
        out.put_slice(data);
    };
    match method {
        "Status" => {
            put(1, b"v2");
            put(2, b"ok");
            put(3, said.as_bytes());
        }
        "Encrypt" => {
            put(1, &turned());
            put(2, used.as_bytes());
        }
        _ => put(1, &turned()),
    }
    out.freeze()
}
