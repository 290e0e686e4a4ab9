INSERT INTO taken_in (jobs, unprocessable) VALUES (2, 1);
