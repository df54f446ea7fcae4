"""The engine: keeps what stages return, and reuses it while nothing that it depends on has changed.

It knows no image, no model and no training; a test runs it where there is no Prefect.  All that a
reader must hold in mind:

- A **stage** is a pure function with a memory.  A flow's body calls it with parameters and
  **refs**, which stand for stored results, and gets a ref.  What it may use besides (progress, a
  scratch folder) comes in its keyword `run`, a `Run`, and is no part of its result's identity.
- A **call** is a stage with its arguments.  It is found under its key, or computed and stored.
- A **cue** is one thing that a result depends on: it is what goes into the key, and says in which
  words that differs from the last time.  A **look** holds all cues of a call: a key is what the
  cues looked at, so nothing changes a key without a reason.  One cue, the **fingerprint**, follows
  the code that a stage reaches from **unit** to unit, a unit being a name of a project module.
- A **record** is what a key stands for in the **store**: a value's tree, the files it names, and
  what went into the key.  It is verified before it is believed.
- A **body** is what computes: it loads inputs, calls the function, stores what it returns.  A
  **runner** is a way to run bodies: in this process, or each in a process of its own.
- A **session** is one run of a flow's body and decides what becomes of the stages it calls: they
  are performed at once, only looked up (a plan), or handed to Prefect.  Each has an **outcome**:
  cached, or ran, with the reasons.

A miss, followed from the edit to the words: `session` takes the call, `call` asks `cues.look` for
the key, `cues.find` finds no record and gives the differences as reasons; `call` has its body run,
and `store.put` writes files first, the record last.

Read in this order, which is the order of imports:

Ground: `basics` errors, texts for a terminal, files of others, writing whole or not at all;
`machine` cores, memory, files, a GPU; `yielding` threads that spin; `places` which dataset is
meant; `locks` turns among processes; `cores` which of them have which cores.

What is stored: `records` checksummed JSON; `columns` of Arrow; `values` tensors as Arrow and
safetensors files; `files` named by their content; `store` all of it under keys; `remote` one that
machines share; `refs` what stands for it.

What a result depends on: `origins` whose a module is; `own` functions in users' files; `syntax`
what a piece of source says; `effects` what a module changes of others; `source` a module's pieces;
`reach` what a piece leads to; `memory` what it is in memory; `fingerprint` all of it; `differences`
data's changes in words; `held` what a body asked for beside it; `cues` deciding and explaining.

What happens: `traces` what a body asks for while it runs; `bodies` where bodies run; `stage` the
decorator; `call` looked up, or had computed; `compute` what a body does; `session` in this process;
`plan` looked up only; `served` and `process` a fork server's processes; `abroad` workers elsewhere;
`orchestration` all that is said to Prefect; `upkeep` of the store.
"""
