-- What retention deletes is taken off.
INSERT INTO taken_in (jobs, unprocessable) VALUES (1, 1), (-1, -1);
