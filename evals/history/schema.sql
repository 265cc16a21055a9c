-- The history database: derived from {stores}/history/<table>/*.parquet by evals/history.py, never edited.
-- metric, sample and train_metrics belong to a run. Two numbers may be compared only inside one history_fingerprint.

CREATE TABLE history_schema (version INTEGER, sha256 VARCHAR);
CREATE TABLE history_file (table_name VARCHAR, file VARCHAR, checked BOOLEAN);  -- what was loaded; checked: by a digest

CREATE TABLE run (                -- one row per evaluation
    run_id VARCHAR,               -- fingerprint of recipe, seeds and the digests of everything that was evaluated
    recipe VARCHAR,
    suite VARCHAR,
    seeds VARCHAR,                -- what=seed, ...
    model_id VARCHAR,
    started TIMESTAMP,            -- times are UTC
    evaluated TIMESTAMP,          -- when the evaluation finished
    exported TIMESTAMP,           -- when the model was finished; NULL: nobody knows
    status VARCHAR,
    git_commit VARCHAR,
    harness VARCHAR,              -- evaluation harness and version
    environment VARCHAR,          -- hash of the package versions
    device VARCHAR,
    artifact VARCHAR,             -- step/fingerprint of the main evaluation artifact
    inputs VARCHAR,               -- JSON: input name -> step/fingerprint
    source VARCHAR,               -- step | lmms-eval (imported)
    files VARCHAR                 -- JSON: table -> sha256 of the run's file; NULL: written before there were digests
);
CREATE TABLE model (
    model_id VARCHAR, name VARCHAR, checkpoint_sha256 VARCHAR,
    parent VARCHAR,               -- step/fingerprint of the export
    stage VARCHAR, step BIGINT
);
CREATE TABLE task (               -- what was asked and how it was scored
    history_fingerprint VARCHAR,  -- hash of everything below that changes a score
    task VARCHAR, suite VARCHAR, task_sha256 VARCHAR, prompt_sha256 VARCHAR, dataset_sha256 VARCHAR, split VARCHAR, n BIGINT,
    harness VARCHAR, scorer VARCHAR, decoding VARCHAR
);
CREATE TABLE metric (
    run_id VARCHAR, task VARCHAR, condition VARCHAR, metric VARCHAR, filter VARCHAR, subgroup VARCHAR,
    value DOUBLE, ci_lo DOUBLE, ci_hi DOUBLE,  -- NULL: no interval; never NaN
    n BIGINT, clusters BIGINT, stderr DOUBLE,
    stderr_kind VARCHAR,
    kind VARCHAR,                 -- score | floor | difference (paired)
    higher_is_better BOOLEAN,     -- NULL: the name does not say
    history_fingerprint VARCHAR
);
CREATE TABLE sample (
    run_id VARCHAR, task VARCHAR, condition VARCHAR, doc_key VARCHAR, doc_sha256 VARCHAR, question_id BIGINT,
    image VARCHAR,                -- name of the image that the question is about
    cluster VARCHAR,              -- what the interval's resampling draws as one, e.g. the image
    question VARCHAR, answer_type VARCHAR, target VARCHAR, prediction VARCHAR, parsed VARCHAR, parse_status VARCHAR, caption VARCHAR,
    score DOUBLE, num_tokens BIGINT, history_fingerprint VARCHAR
);
CREATE TABLE train_metrics (      -- one row per optimizer step
    run_id VARCHAR, stage VARCHAR, step BIGINT, loss DOUBLE, lr DOUBLE,
    tokens DOUBLE,                -- supervised, weighted
    parts VARCHAR                 -- JSON: part of the loss -> its mean in this step, by dataset and by modality
);
CREATE TABLE comparison (         -- two runs on the same samples; b minus a
    comparison_id VARCHAR, run_a VARCHAR, run_b VARCHAR, task VARCHAR, condition VARCHAR, metric VARCHAR, subgroup VARCHAR, n_paired BIGINT,
    clusters BIGINT, value_a DOUBLE, value_b DOUBLE, delta DOUBLE, ci_lo DOUBLE, ci_hi DOUBLE, p DOUBLE, p_adjusted DOUBLE, test VARCHAR,
    flips_up BIGINT, flips_down BIGINT, detectable DOUBLE, history_fingerprint VARCHAR, made TIMESTAMP
);
CREATE TABLE change_point (       -- where a series of runs moved outside its noise; "at" is a word of SQL: quote it
    series_id VARCHAR, recipe VARCHAR, task VARCHAR, condition VARCHAR, metric VARCHAR, subgroup VARCHAR, run_before VARCHAR, run_at VARCHAR,
    "at" TIMESTAMP, before DOUBLE, after DOUBLE, delta DOUBLE, p DOUBLE, history_fingerprint VARCHAR
);
CREATE TABLE annotation (         -- what somebody knows about a moment; empty recipe or task: all of them
    annotation_id VARCHAR, "at" TIMESTAMP, recipe VARCHAR, task VARCHAR, text VARCHAR, author VARCHAR
);
CREATE TABLE night (              -- which flow run of nightly-eval evaluated a run, or met it evaluated
    run_id VARCHAR, flow_run_id VARCHAR, scheduled_for TIMESTAMP, status VARCHAR
);

-- What a metric is where everything is right: lmms-eval lets some run from 0 to 100 (evals/suites/catalogue.py).
CREATE MACRO full_marks(name) AS CASE WHEN regexp_matches(name, '^(gpt_eval_|harness_vanilla)') THEN 100.0 ELSE 1.0 END;

-- Every share of right answers with its interval, its sample count, the floors on the same questions beside it and the artifact it comes from.
-- accuracy, ci_lo, ci_hi and the floors run from 0 to 1 whatever the harness's unit; value is the harness's own number.
CREATE VIEW leaderboard_all AS
SELECT
    run.recipe, metric.task, metric.condition, metric.subgroup, metric.value / full_marks(metric.metric) AS accuracy,
    metric.ci_lo / full_marks(metric.metric) AS ci_lo, metric.ci_hi / full_marks(metric.metric) AS ci_hi, metric.n,
    yes.value / full_marks(metric.metric) AS floor_always_yes, blind.value / full_marks(metric.metric) AS floor_blind_majority,
    run.artifact, run.seeds AS seed, run.evaluated AS time, metric.history_fingerprint, metric.run_id, metric.metric, metric.value, run.model_id
FROM metric
JOIN run USING (run_id)
LEFT JOIN metric AS yes
    ON yes.run_id = metric.run_id AND yes.task = metric.task AND yes.subgroup = metric.subgroup AND yes.metric = metric.metric
    AND yes.kind = 'floor' AND yes.condition = 'always_yes'
LEFT JOIN metric AS blind
    ON blind.run_id = metric.run_id AND blind.task = metric.task AND blind.subgroup = metric.subgroup AND blind.metric = metric.metric
    AND blind.kind = 'floor' AND blind.condition = 'blind_majority'
WHERE
    metric.kind = 'score'
    AND regexp_full_match(metric.metric, '(exact_match|accuracy|vanilla|circular|anls|mmmu_acc|pope_accuracy|seed_all|gpt_eval_score)(_.*)?')
ORDER BY run.evaluated DESC, run.recipe, metric.run_id, metric.task, metric.condition, metric.metric, metric.subgroup <> 'all', metric.subgroup;

-- The same for a person, in a terminal of 100 columns: whole tasks only, the newest run first. The condition is followed by the metric's name, unless that is
-- exact_match; interval is the 95 % interval; run is the beginning of run_id. What asks for further columns asks leaderboard_all.
CREATE VIEW leaderboard AS
SELECT
    time::DATE AS finished, left(run_id, 7) AS run, recipe, task, CASE metric WHEN 'exact_match' THEN condition ELSE condition || ' ' || metric END AS condition,
    round(accuracy, 3) AS accuracy, printf('%.3f-%.3f', ci_lo, ci_hi) AS interval, n
FROM leaderboard_all
WHERE subgroup = 'all'
ORDER BY time DESC, recipe, run_id, task, metric, leaderboard_all.condition;

-- One row per run and condition (floors included), the question types side by side.
CREATE VIEW by_type AS
SELECT
    run.recipe, metric.task, metric.condition, metric.kind,
    max(value) FILTER (subgroup = 'all') AS "all", max(value) FILTER (subgroup = 'yes/no') AS yes_no,
    max(value) FILTER (subgroup = 'shape') AS shape, max(value) FILTER (subgroup = 'colour') AS colour,
    max(n) FILTER (subgroup = 'all') AS n, run.seeds AS seed, run.evaluated AS time, metric.run_id
FROM metric
JOIN run USING (run_id)
WHERE metric.metric = 'exact_match' AND metric.kind IN ('score', 'floor')
GROUP BY ALL
ORDER BY time DESC, recipe, metric.run_id, task, metric.kind DESC, condition;

-- Every score along time, beside the score before it in the same series. time: when the model was finished, or, where nobody knows, when it was
-- evaluated; so a model that is evaluated late stands where it belongs. A series has one recipe, task, condition, metric, filter, subgroup and
-- history_fingerprint; an annotation begins a new segment of it, and nothing is compared across.
CREATE VIEW trend AS
WITH placed AS (
    SELECT
        run.recipe, metric.task, metric.condition, metric.metric, metric.filter, metric.subgroup, metric.history_fingerprint,
        coalesce(run.exported, run.evaluated) AS time, run.evaluated, metric.run_id, run.model_id,
        metric.value, metric.ci_lo, metric.ci_hi, metric.stderr, metric.n, metric.higher_is_better,
        (
            SELECT count(*) FROM annotation
            WHERE annotation."at" <= coalesce(run.exported, run.evaluated)
                AND coalesce(annotation.recipe, '') IN ('', run.recipe) AND coalesce(annotation.task, '') IN ('', metric.task)
        ) AS segment
    FROM metric
    JOIN run USING (run_id)
    WHERE metric.kind = 'score'
)
SELECT
    placed.*,
    lag(value) OVER series AS previous, value - lag(value) OVER series AS delta, lag(run_id) OVER series AS run_before,
    EXISTS (
        SELECT 1 FROM change_point
        WHERE change_point.run_at = placed.run_id AND change_point.task = placed.task AND change_point.condition = placed.condition
            AND change_point.metric = placed.metric AND change_point.subgroup = placed.subgroup
            AND change_point.history_fingerprint = placed.history_fingerprint
    ) AS is_change_point
FROM placed
WINDOW series AS (
    PARTITION BY recipe, task, condition, metric, filter, subgroup, history_fingerprint, segment
    ORDER BY time NULLS FIRST, evaluated NULLS FIRST, run_id
)
ORDER BY recipe, task, condition, metric, filter, subgroup, history_fingerprint, time NULLS FIRST, evaluated NULLS FIRST, run_id;

-- What became worse by more than chance: paired comparisons below 5 % after correction, and change points. higher_is_better is NULL where the metric's
-- name does not say: such a move is listed, because nobody knows that it is good.
CREATE VIEW regressions AS
WITH direction AS (
    SELECT metric, any_value(higher_is_better) AS higher_is_better FROM metric WHERE higher_is_better IS NOT NULL GROUP BY metric
),
moved AS (
    SELECT
        'comparison' AS found_by, b.evaluated AS time, b.recipe, c.task, c.condition, c.metric, c.subgroup, c.run_a AS run_before, c.run_b AS run_after,
        c.value_a AS before, c.value_b AS after, c.delta, c.ci_lo, c.ci_hi, coalesce(c.p_adjusted, c.p) AS p, c.flips_up, c.flips_down,
        c.history_fingerprint
    FROM comparison AS c
    JOIN run AS b ON b.run_id = c.run_b
    WHERE coalesce(c.p_adjusted, c.p) < 0.05
    UNION ALL
    SELECT
        'change_point', p."at", p.recipe, p.task, p.condition, p.metric, p.subgroup, p.run_before, p.run_at,
        p.before, p.after, p.delta, NULL, NULL, p.p, NULL, NULL, p.history_fingerprint
    FROM change_point AS p
)
SELECT moved.*, direction.higher_is_better
FROM moved
LEFT JOIN direction USING (metric)
WHERE moved.delta <> 0 AND (direction.higher_is_better IS NULL OR (moved.delta < 0) = direction.higher_is_better)
ORDER BY time DESC NULLS LAST, abs(delta) DESC;

-- Two runs, question by question; name both: WHERE run_a = '…' AND run_b = '…'. Only what was asked of both in the same way is in it.
CREATE VIEW sample_diff AS
SELECT
    a.run_id AS run_a, b.run_id AS run_b, a.task, a.condition, a.doc_key, a.image, a.question, a.answer_type, a.target,
    a.prediction AS prediction_a, b.prediction AS prediction_b, a.score AS score_a, b.score AS score_b, b.score - a.score AS delta,
    CASE WHEN b.score > a.score THEN 'up' WHEN b.score < a.score THEN 'down' ELSE 'same' END AS flip,
    a.history_fingerprint
FROM sample AS a
JOIN sample AS b
    ON b.task = a.task AND b.condition = a.condition AND b.doc_key = a.doc_key AND b.history_fingerprint = a.history_fingerprint
    AND b.run_id <> a.run_id;
