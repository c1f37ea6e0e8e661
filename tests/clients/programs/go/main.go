// A round trip with the client that openapi-generator makes: see tests/clients/__main__.py.
package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	glimpse "example.org/glimpse"
)

var folder = os.Getenv("FILES")

func check(holds bool, what string, details ...any) {
	if !holds {
		fmt.Println("FAILED", what, details)
		os.Exit(1)
	}
	fmt.Println("ok", what)
}

func open(name string) *os.File {
	file, err := os.Open(filepath.Join(folder, name))
	check(err == nil, "open "+name, err)
	return file
}

func problem(err error, response *http.Response) *glimpse.Problem {
	var failed *glimpse.GenericOpenAPIError
	check(errors.As(err, &failed), "an error has a body", err)
	model, typed := failed.Model().(glimpse.Problem)
	check(typed, "the body is a Problem", failed.Model(), string(failed.Body()))
	check(int(model.Status) == response.StatusCode, "with the status of the response")
	return &model
}

func main() {
	configuration := glimpse.NewConfiguration()
	configuration.Servers = glimpse.ServerConfigurations{{URL: os.Getenv("GLIMPSE_URL")}}
	client := glimpse.NewAPIClient(configuration)
	ctx := context.Background()

	image, _, err := client.ImagesAPI.UploadImage(ctx).Img(open("1.jpg")).Prefer("wait=30").Execute()
	check(err == nil && image.Status == glimpse.STATUS_SUCCESS, "upload", err, image)
	check(len(image.Annotations) > 0, "labels")

	file := open("2.jpg")
	digest := sha256.New()
	_, _ = io.Copy(digest, file)
	_, _ = file.Seek(0, io.SeekStart)
	hash := hex.EncodeToString(digest.Sum(nil))
	image, _, err = client.ImagesAPI.PutImage(ctx, hash).Body(file).Prefer("wait=30").Execute()
	check(err == nil && image.ImageHash == hash, "put", err)
	image, _, err = client.ImagesAPI.GetImage(ctx, hash).Execute()
	check(err == nil && image.Status == glimpse.STATUS_SUCCESS, "get", err)

	three := []*os.File{open("1.jpg"), open("2.jpg"), open("3.jpg")}
	accepted, _, err := client.JobsAPI.CreateJob(ctx).Imgs(three).Execute()
	check(err == nil, "job of three", err)
	job := &glimpse.Job{}
	for range 300 {
		job, _, err = client.JobsAPI.GetJob(ctx, accepted.JobId).Execute()
		check(err == nil, "get job", err)
		if job.Status == glimpse.JOB_STATUS_COMPLETED {
			break
		}
		time.Sleep(100 * time.Millisecond)
	}
	check(job.Succeeded == 3, "three images succeed", job)
	results, _, err := client.JobsAPI.GetJobResults(ctx, accepted.JobId).Execute()
	check(err == nil && len(results.Results) == 3, "results", err)
	check(results.Results[0].Status == glimpse.ITEM_STATUS_SUCCEEDED, "of succeeded images")
	jobs, _, err := client.JobsAPI.ListJobs(ctx).Limit(5).Execute()
	check(err == nil && jobs.Jobs[0].JobId == accepted.JobId, "list jobs", err)

	_, response, err := client.JobsAPI.CreateZipJob(ctx).Body(open("images.zip")).Execute()
	check(err == nil && response.StatusCode == 202, "job from a zip", err)
	tomorrow := time.Now().Add(24 * time.Hour)
	later, _, err := client.JobsAPI.CreateJob(ctx).Imgs([]*os.File{open("3.jpg")}).NotBefore(tomorrow).Execute()
	check(err == nil, "job for tomorrow", err)
	job, _, err = client.JobsAPI.CancelJob(ctx, later.JobId).Execute()
	check(err == nil && job.Status == glimpse.JOB_STATUS_CANCELLED, "cancel", err)

	_, response, err = client.ImagesAPI.UploadImage(ctx).Img(open("text.txt")).Execute()
	check(problem(err, response).Code == glimpse.UNSUPPORTED_IMAGE, "415")
	_, response, err = client.ImagesAPI.UploadImage(ctx).Img(open("large.jpg")).Execute()
	refused := problem(err, response)
	check(refused.Code == glimpse.IMAGE_TOO_LARGE && refused.GetMaxBytes() > 0, "413")
	_, response, err = client.ImagesAPI.GetImage(ctx, strings.Repeat("0", 64)).Execute()
	check(problem(err, response).Code == glimpse.NOT_FOUND, "404")
	readiness, _, err := client.OperationsAPI.GetReadiness(ctx).Execute()
	check(err == nil && readiness.Checks["records"] == "ok", "ready", err)
}
